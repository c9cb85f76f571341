//! Everything that prints: progress, tables, JSON, prompts, exit statuses.
