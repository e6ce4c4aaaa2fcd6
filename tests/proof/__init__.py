"""The durability proof: a real server is killed again and again under load, and no acknowledged message may be missing."""
