WRONG, RIGHT = {}, {}
