# SPDX-License-Identifier: Apache-2.0
"""The sub-commands, one module each; ``cli.py`` imports a module when its command is asked for."""
