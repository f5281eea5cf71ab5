# SPDX-License-Identifier: Apache-2.0
"""Where convolution and transformer meet: anchors, streams, attentions, and the ways between."""
