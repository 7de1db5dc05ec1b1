//! Sanitize (Base 2.0, 5.24): dword 10, and the status word of its log page.

/// SANACT: leave the failure mode.
pub const EXIT_FAILURE_MODE: u32 = 1;
/// SANACT: start a block erase.
pub const BLOCK_ERASE: u32 = 2;
/// SANACT: start an overwrite.
pub const OVERWRITE: u32 = 3;
/// SANACT: start a crypto erase.
pub const CRYPTO_ERASE: u32 = 4;
/// Dword 10: Allow Unrestricted Sanitize Exit, a failure can be left without another sanitize.
pub const AUSE: u32 = 1 << 3;
/// Dword 10: Overwrite Invert Pattern Between Passes.
pub const OIPBP: u32 = 1 << 8;
/// Dword 10: No-Deallocate After Sanitize.
pub const NDAS: u32 = 1 << 9;

/// SANICAP: crypto erase is supported.
pub const CAP_CRYPTO_ERASE: u32 = 1 << 0;
/// SANICAP: block erase is supported.
pub const CAP_BLOCK_ERASE: u32 = 1 << 1;
/// SANICAP: overwrite is supported.
pub const CAP_OVERWRITE: u32 = 1 << 2;
/// SANICAP, NODMMAS 01b: media is not modified after a sanitize that does not deallocate.
pub const CAP_NOT_MODIFIED_AFTER: u32 = 1 << 30;

/// SSTAT bits 2:0: never sanitized.
pub const STATE_NEVER: u16 = 0;
/// SSTAT bits 2:0: the last sanitize succeeded.
pub const STATE_SUCCEEDED: u16 = 1;
/// SSTAT bits 2:0: in progress.
pub const STATE_IN_PROGRESS: u16 = 2;
/// SSTAT bits 2:0: the last sanitize failed.
pub const STATE_FAILED: u16 = 3;
/// SSTAT bits 2:0: the last sanitize succeeded, and nothing was deallocated though asked for.
pub const STATE_SUCCEEDED_UNDEALLOCATED: u16 = 4;
/// SSTAT: nothing was written since the last sanitize that succeeded.
pub const GLOBAL_DATA_ERASED: u16 = 1 << 8;

/// SANACT, bits 2:0 of dword 10.
pub const fn action(cdw10: u32) -> u32 {
    cdw10 & 7
}

/// OWPASS, bits 7:4 of dword 10: 1 to 16 passes, of which 16 is 0 on the wire.
pub const fn passes(cdw10: u32) -> u32 {
    match cdw10 >> 4 & 0xf {
        0 => 16,
        passes => passes,
    }
}

/// Dword 10 bits 7:4 for a number of passes, 1 to 16.
pub const fn with_passes(passes: u32) -> u32 {
    (passes & 0xf) << 4
}
