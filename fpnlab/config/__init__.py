"""Reading, validation and resolution of experiment configs."""
