"""What writes and judges text: chat engines and what they have in common."""
