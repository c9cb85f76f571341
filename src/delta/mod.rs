//! Changelist to delta to apply: staged, parallel, bounded memory.
