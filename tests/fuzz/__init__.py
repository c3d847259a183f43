"""What comes from outside, damaged at random: errors are our own, and nothing crashes or hangs."""
