"""Which patches survive each stage: pictures -> visualization -> HTML or PNG."""
