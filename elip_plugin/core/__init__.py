"""The method as functions of tensors; nothing here knows a host."""
