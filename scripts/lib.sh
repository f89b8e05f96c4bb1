# What the set-up scripts share: where things are cached, how to speak, how to install.
# Sourced by scripts/setup-* and scripts/build-*; never run by itself.
# shellcheck shell=bash
# shellcheck source=scripts/versions
source "${BASH_SOURCE[0]%/*}/versions"
ROOT=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
CACHE=${LUNAQ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lunaq}
ARCH=$(uname -m)
# shellcheck disable=SC2034  # read by the scripts that source this file
KUBERNETES_BIN=$CACHE/kubernetes-$KUBERNETES-helm-$HELM-coredns-$COREDNS-r$KUBERNETES_RECIPE-$ARCH
mkdir -p "$CACHE"

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$@"; exit 1; }

# Hold lock $1 of the cache until the script ends: two set-ups at once build a thing once.
lock() {
  exec {lock_fd}>"$CACHE/.$1.lock"
  flock --nonblock "$lock_fd" && return
  say "another run is setting up $1; waiting for it"
  flock "$lock_fd"
}

is_debian() { [ -f /etc/debian_version ] && command -v apt-get >/dev/null; }

# How somebody without root, or without Debian, gets what level $1 needs.
elsewhere() {
  case $1 in
    broker) echo "or set LUNAQ_TEST_AMQP_URI and LUNAQ_TEST_MANAGEMENT_URI to a RabbitMQ that tests may use" ;;
    *) echo "or set LUNAQ_TEST_KUBECONFIG to a cluster that tests may use (docs/development.md)" ;;
  esac
}

missing_packages() {
  local package
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
  done
}

# Install Debian packages for level $1 without starting any service they bring. One at a time: levels are set
# up side by side, and dpkg turns a second one away.
install_packages() {
  local level=$1; shift
  is_debian || die "needs $* as Debian packages, and this is not Debian;" "$(elsewhere "$level")"
  [ -n "$(missing_packages "$@")" ] || return 0
  (flock 9 && install_missing "$level" "$@") 9>"$CACHE/.apt.lock"
}

install_missing() {
  local level=$1; shift
  local missing; mapfile -t missing < <(missing_packages "$@")
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "missing: ${missing[*]}. Run: sudo apt-get install ${missing[*]};" "$(elsewhere "$level")"
  say "installing ${missing[*]} (about 1 min, once)"
  local log; log=$(mktemp)
  if ! { apt-get update -q && without_services apt-get install -qy --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 9>&-; then
    tail -n 30 "$log" >&2; die "apt-get could not install ${missing[*]}: the lines above say why"
  fi
  rm -f "$log"
}

# Run a command while Debian's policy forbids packages to start services.
without_services() {
  local policy=/usr/sbin/policy-rc.d status=0
  if [ -e $policy ]; then RABBITMQ_NODENAME=rabbit@localhost DEBIAN_FRONTEND=noninteractive "$@"; return; fi
  printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy
  RABBITMQ_NODENAME=rabbit@localhost DEBIAN_FRONTEND=noninteractive "$@" || status=$?
  rm -f $policy
  return $status
}

# Need Go $1 for $2: this version, or one that may fetch it by itself.
need_go() {
  command -v go >/dev/null || die "needs Go $1 or newer to build $2: https://go.dev/doc/install;" "$(elsewhere cluster)"
  local have; have=$(GOTOOLCHAIN=local go env GOVERSION); have=${have#go}
  [ "$(printf '%s\n%s\n' "$1" "$have" | sort -V | head -n1)" = "$1" ] && return
  case $(go env GOTOOLCHAIN) in
    local*) die "needs Go $1 or newer to build $2, found $have, and GOTOOLCHAIN=local forbids to fetch it:" \
      "install it from https://go.dev/doc/install, or set GOTOOLCHAIN=auto;" "$(elsewhere cluster)" ;;
  esac
}

need_root() {
  [ "$(id -u)" = 0 ] || die "runs containers, which needs root: sudo make test-node;" "$(elsewhere node)"
}

# The hash of the files and folders named, by content and path.
content_hash() {
  (cd "$ROOT" && find "$@" -type f -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-12)
}
