"""Whether the step that runs now in this worker belongs to a lost group: what it computes is then nobody's KV.

Set by recovery in place before it frees a rank from a collective, asked by the connector before it queues stores.
"""

from __future__ import annotations

import threading

lost_step = threading.Event()
