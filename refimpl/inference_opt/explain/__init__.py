"""What shows the techniques: pictures, the player, scenarios, the tour."""
