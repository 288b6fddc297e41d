//! Tests of the core, a file a topic.

mod job_table;
