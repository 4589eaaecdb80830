"""Where keys and values live: answers to the one question `attend`. Never hears of schedulers."""
