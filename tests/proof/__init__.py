"""The durability proof: a real server is killed again and again under load, and nothing acknowledged may be missing."""
