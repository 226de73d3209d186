"""What the controller and its workers tell each other: steps, notes for later ones, reports."""
