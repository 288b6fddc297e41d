//! Every bound of the wire, in one place, named with its unit last. Both sides enforce them on what they
//! receive; what they send never exceeds them. Relations between them are asserted at compile time.

/// Largest frame of a control or artifact stream, in bytes, without its length prefix.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// Largest header of a stream, in bytes as a frame without its prefix: what a peer can make the coordinator keep for
/// each stream that it begins.
pub const STREAM_HEADER_BYTES_MAX: usize = 4 << 10;

/// Largest request to enrol, in bytes as a frame without its prefix.
pub const ENROL_BYTES_MAX: usize = 20 << 10;

/// Budget of one decoded frame, in bytes as bincode counts them: fixed decoded widths, so a frame of small
/// integers counts for up to eight times its size on the wire.
pub const DECODED_BYTES_MAX: usize = 8 << 20;

/// Largest record of a store, in bytes: the plan of a pack run that is as large as they get.
pub const RECORD_BYTES_MAX: usize = 256 << 20;

/// Longest text of one log entry, in bytes. A longer line is cut into pieces marked as continued.
pub const ENTRY_TEXT_BYTES_MAX: usize = 64 << 10;

/// Most text in one log block, in bytes.
pub const BLOCK_TEXT_BYTES_MAX: usize = 64 << 10;

/// Most entries in one log block.
pub const BLOCK_ENTRIES_MAX: usize = 4096;

/// Largest log block, in bytes, with its header: the bound a reader may allocate for.
pub const BLOCK_BYTES_MAX: usize =
    crate::block::HEADER_BYTES + BLOCK_ENTRIES_MAX * crate::block::ENTRY_BYTES + BLOCK_TEXT_BYTES_MAX;

/// Smallest limit that a log may have, in bytes.
pub const LOG_BYTES_MIN: u64 = 1 << 10;

/// Largest limit that a log may have, in bytes: 1 TiB.
pub const LOG_BYTES_MAX: u64 = 1 << 40;

/// What a log may have over its limit, in bytes: what packrun itself says of the attempt, that its log was cut among
/// it.
pub const LOG_OVERRUN_BYTES_MAX: u64 = 256 << 10;

/// Most remarks of packrun's own in a log, beside those of a cut.
pub const LOG_REMARKS_MAX: usize = 21;

/// Longest of these remarks, in bytes. A longer one is cut where it is made.
pub const LOG_REMARK_BYTES_MAX: usize = 8 << 10;

/// Longest pack or job name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Longest value of one matrix axis, in bytes.
pub const MATRIX_VALUE_BYTES_MAX: usize = 128;

/// Longest key of a job run (`test[shard=1,os=linux]`), in bytes.
pub const JOB_KEY_BYTES_MAX: usize = 1024;

/// Longest key of a label, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 63;

/// Longest value of a label, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 255;

/// Most labels of one agent or one job.
pub const LABELS_MAX: usize = 64;

/// Longest path of an artifact or input, in bytes, relative to the workspace.
pub const PATH_BYTES_MAX: usize = 1024;

/// Longest component of such a path, in bytes (`NAME_MAX` of Linux file systems).
pub const PATH_COMPONENT_BYTES_MAX: usize = 255;

/// Longest reason given in words, in bytes. A longer one is cut when it is made.
pub const REASON_BYTES_MAX: usize = 1024;

/// Most slots of one agent.
pub const SLOTS_MAX: u32 = 4096;

/// Most attempts an agent may report when it connects: those that run and those that ended unacknowledged.
pub const HELD_ATTEMPTS_MAX: usize = 8192;

/// Largest definition of one job, rendered, in bytes.
pub const JOB_DEFINITION_BYTES_MAX: usize = 512 << 10;

/// Most artifact rules of one job.
pub const ARTIFACT_RULES_MAX: usize = 1024;

/// Most artifacts of one attempt.
pub const ARTIFACTS_PER_ATTEMPT_MAX: usize = 100_000;

/// Largest artifact, in bytes: 1 TiB.
pub const ARTIFACT_BYTES_MAX: u64 = 1 << 40;

/// Longest certificate or certificate request, in bytes of PEM.
pub const CERTIFICATE_BYTES_MAX: usize = 16 << 10;

/// Longest URL of a coordinator's API, in bytes.
pub const API_URL_BYTES_MAX: usize = 512;

/// Longest join token, in bytes of text.
pub const JOIN_TOKEN_BYTES_MAX: usize = 256;

const _: () = {
    assert!(
        PATH_BYTES_MAX + NAME_BYTES_MAX + 256 <= STREAM_HEADER_BYTES_MAX,
        "the header of an upload fits, which is the largest"
    );
    assert!(CERTIFICATE_BYTES_MAX + NAME_BYTES_MAX + 256 <= ENROL_BYTES_MAX, "a request to enrol fits");
    assert!(
        JOB_DEFINITION_BYTES_MAX * 2 <= FRAME_BYTES_MAX,
        "a rendered job and its envelope fit in a frame"
    );
    assert!(BLOCK_BYTES_MAX <= FRAME_BYTES_MAX, "a block is never larger than a frame");
    assert!(ENTRY_TEXT_BYTES_MAX <= BLOCK_TEXT_BYTES_MAX, "any entry fits in an empty block");
    assert!(
        (LOG_REMARKS_MAX + 2) * (LOG_REMARK_BYTES_MAX + crate::block::ENTRY_BYTES)
            <= LOG_OVERRUN_BYTES_MAX as usize,
        "what packrun says of an attempt fits in the overrun"
    );
    assert!(FRAME_BYTES_MAX <= DECODED_BYTES_MAX, "a frame of bytes fits in the decoder's budget");
    assert!(HELD_ATTEMPTS_MAX * 40 <= FRAME_BYTES_MAX, "a full report fits in a frame");
    assert!(HELD_ATTEMPTS_MAX >= 2 * SLOTS_MAX as usize, "an agent can report all it can hold");
};
