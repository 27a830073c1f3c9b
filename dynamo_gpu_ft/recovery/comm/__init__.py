"""Communicators of one epoch behind one contract: made for its members, revoked when one is lost, made anew without it."""
