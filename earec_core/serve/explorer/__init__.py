"""The page that a service shows at its address, and what the page asks for beside the service's other answers."""
