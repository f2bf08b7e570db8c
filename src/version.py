"""The version of this project; CHANGELOG.md says what is new in it."""
VERSION = '0.4.0'
