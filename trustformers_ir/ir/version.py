"""The version of the package: written here once, read by packaging, the command line and every artifact."""

VERSION = "0.1.0"
