"""The control API: HTTP and JSON on the control socket. It never imports the engine."""
