"""Where the text is an input at test time: questions about one of several objects."""
