"""The Kubernetes half of Lunaq: resources to entries, RBAC to policy, reconciliation, command line."""
