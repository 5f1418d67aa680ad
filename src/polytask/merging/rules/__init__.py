"""Rules that combine task vectors of checkpoints: one small file each, found through core/names.py."""
