"""The steps of the scripted CLI of the tests."""
