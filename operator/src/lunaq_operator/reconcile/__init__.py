"""One reconciler per kind: the wanted is computed purely, compared, and only the difference is written."""
