//! The limits and settings of a database by name, with their reasons.
//!
//! Whatever can change the outcome of a write is the same on every replica: it is either a
//! constant of the version or part of the replicated state ([`crate::Operation::SetLimits`]).

/// SQLite's page size, as created; the layout of pages is the same on all replicas.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// No entry gets more steps than SQLite's 31-bit counter holds.
pub(crate) const STEPS_MAX: u64 = 1 << 30;
/// Statements of one entry that may end the batch's transaction (`OR ROLLBACK`, a spent budget):
/// each makes the batch run again, so more of them are refused.
pub(crate) const LOST_STATEMENTS_MAX: usize = 4;

/// Settings of a database. The defaults are the platform's; those that decide outcomes must be
/// equal on all replicas.
#[derive(Debug, Clone)]
pub struct Options {
    /// One TEXT or BLOB value, and one row. Decides outcomes.
    pub value_bytes_max: usize,
    /// One SQL text. Decides outcomes.
    pub statement_bytes_max: usize,
    /// Parameters of one statement. Decides outcomes.
    pub parameters_max: usize,
    /// Rows of one statement's result. Decides outcomes.
    pub result_rows_max: usize,
    /// Bytes of one statement's result. Decides outcomes.
    pub result_bytes_max: usize,
    /// How far one statement may take the file beyond its limit, or beyond the size that it had when that was
    /// set, before SQLite itself stops it; the statement is then rolled back. Room for the hidden tables, which
    /// are not subject to the limit. Decides outcomes.
    pub overshoot_bytes: u64,
    /// The furthest one entry moves log time or lease time forward. Decides outcomes.
    pub log_time_step_max_ms: u64,
    /// Write sessions; the one longest idle gives way. Decides outcomes.
    pub sessions_max: usize,
    /// Results kept of one session. Decides outcomes.
    pub session_results_max: u64,
    /// One kept result; of a larger one only the fact is kept. Decides outcomes.
    pub session_result_bytes_max: usize,
    /// The longest life of an idle session. Decides outcomes.
    pub session_lifetime_max_ms: u64,
    /// Leases alive at a time. Decides outcomes.
    pub leases_max: usize,
    /// Registers that go with one lease. Decides outcomes.
    pub registers_per_lease_max: usize,
    /// Leases that one entry ends. Decides outcomes.
    pub leases_ended_per_entry_max: usize,
    /// A larger value is no part of a conflict. Decides outcomes.
    pub conflict_value_bytes_max: usize,
    /// Prepared statements kept per connection: the working set of one application.
    pub statement_cache: usize,
    /// Memory for pages per connection.
    pub page_cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            value_bytes_max: 8 << 20,
            statement_bytes_max: 1 << 20,
            parameters_max: 32_766,
            result_rows_max: 1_000_000,
            result_bytes_max: 64 << 20,
            overshoot_bytes: 1 << 30,
            log_time_step_max_ms: 3_600_000,
            sessions_max: 10_000,
            session_results_max: 256,
            session_result_bytes_max: 64 << 10,
            session_lifetime_max_ms: 24 * 3_600_000,
            leases_max: 10_000,
            registers_per_lease_max: 1000,
            leases_ended_per_entry_max: 64,
            conflict_value_bytes_max: 32 << 10,
            statement_cache: 256,
            page_cache_bytes: 16 << 20,
        }
    }
}
