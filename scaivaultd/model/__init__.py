"""The words of the field: ids, names, resources, errors, time. No I/O, no protocol, no imports of ours."""
