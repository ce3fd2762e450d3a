use std::collections::HashMap;
use std::string::ToString;

use super::std;
use crate::Status;

/// Name, SCT and SC, by hand from the tables of the specification.
const KNOWN: &[(Status, u8, u8, &str)] = &[
    (Status::SUCCESS, 0, 0x00, "successful completion"),
    (Status::INVALID_OPCODE, 0, 0x01, "invalid command opcode"),
    (Status::INVALID_FIELD, 0, 0x02, "invalid field in command"),
    (Status::COMMAND_ID_CONFLICT, 0, 0x03, "command id conflict"),
    (Status::DATA_TRANSFER_ERROR, 0, 0x04, "data transfer error"),
    (Status::INTERNAL_ERROR, 0, 0x06, "internal error"),
    (
        Status::COMMAND_ABORT_REQUESTED,
        0,
        0x07,
        "command abort requested",
    ),
    (
        Status::INVALID_NAMESPACE_OR_FORMAT,
        0,
        0x0b,
        "invalid namespace or format",
    ),
    (
        Status::COMMAND_SEQUENCE_ERROR,
        0,
        0x0c,
        "command sequence error",
    ),
    (Status::SGL_OFFSET_INVALID, 0, 0x16, "sgl offset invalid"),
    (
        Status::KEEP_ALIVE_TIMER_EXPIRED,
        0,
        0x19,
        "keep alive timer expired",
    ),
    (
        Status::NAMESPACE_WRITE_PROTECTED,
        0,
        0x20,
        "namespace is write protected",
    ),
    (
        Status::TRANSIENT_TRANSPORT_ERROR,
        0,
        0x22,
        "transient transport error",
    ),
    (Status::LBA_OUT_OF_RANGE, 0, 0x80, "lba out of range"),
    (
        Status::RESERVATION_CONFLICT,
        0,
        0x83,
        "reservation conflict",
    ),
    (
        Status::INVALID_QUEUE_IDENTIFIER,
        1,
        0x01,
        "invalid queue identifier",
    ),
    (Status::INVALID_LOG_PAGE, 1, 0x09, "invalid log page"),
    (
        Status::FEATURE_NOT_SAVEABLE,
        1,
        0x0d,
        "feature identifier not saveable",
    ),
    (
        Status::NAMESPACE_NOT_ATTACHED,
        1,
        0x1a,
        "namespace not attached",
    ),
    (
        Status::INVALID_CONTROLLER_IDENTIFIER,
        1,
        0x1f,
        "invalid controller identifier",
    ),
    (
        Status::COMMAND_SIZE_LIMIT_EXCEEDED,
        1,
        0x83,
        "command size limit exceeded",
    ),
    (Status::DISCOVER_RESTART, 1, 0x90, "discover restart"),
    (
        Status::AUTHENTICATION_REQUIRED,
        1,
        0x91,
        "authentication required",
    ),
    (Status::WRITE_FAULT, 2, 0x80, "write fault"),
    (
        Status::UNRECOVERED_READ_ERROR,
        2,
        0x81,
        "unrecovered read error",
    ),
    (Status::COMPARE_FAILURE, 2, 0x85, "compare failure"),
    (Status::ACCESS_DENIED, 2, 0x86, "access denied"),
    (
        Status::DEALLOCATED_OR_UNWRITTEN,
        2,
        0x87,
        "deallocated or unwritten logical block",
    ),
    (
        Status::ANA_PERSISTENT_LOSS,
        3,
        0x01,
        "asymmetric access persistent loss",
    ),
    (
        Status::ANA_INACCESSIBLE,
        3,
        0x02,
        "asymmetric access inaccessible",
    ),
    (
        Status::ANA_TRANSITION,
        3,
        0x03,
        "asymmetric access transition",
    ),
    (
        Status::CONTROLLER_PATHING_ERROR,
        3,
        0x60,
        "controller pathing error",
    ),
    (Status::HOST_PATHING_ERROR, 3, 0x70, "host pathing error"),
    (
        Status::HOST_ABORTED_COMMAND,
        3,
        0x71,
        "command aborted by host",
    ),
];

#[test]
fn statuses_have_the_codes_and_names_of_the_specification() {
    for (status, sct, sc, name) in KNOWN {
        assert_eq!((status.sct(), status.sc()), (*sct, *sc), "{name}");
        assert_eq!(status.name(), Some(*name));
        assert_eq!(status.is_success(), *sct == 0 && *sc == 0);
    }
}

#[test]
fn codes_that_nvm_and_fabrics_share_have_two_names() {
    assert_eq!(
        Status::CONNECT_INVALID_PARAMETERS,
        Status::WRITE_TO_READ_ONLY_RANGE
    );
    let status = Status::CONNECT_INVALID_PARAMETERS.with_dnr(true);
    assert_eq!(status.name(), Some("attempted write to read only range"));
    assert_eq!(status.fabrics_name(), Some("connect invalid parameters"));
    assert_eq!(
        status.of_fabrics().to_string(),
        "connect invalid parameters (1h/82h, do not retry)"
    );
    assert_eq!(
        Status::INVALID_FIELD.fabrics_name(),
        Status::INVALID_FIELD.name()
    );
}

#[test]
fn no_two_codes_have_one_name() {
    let mut seen = HashMap::new();
    let mut named = 0;
    for code in 0..0x800 {
        let status = Status(code);
        if let Some(name) = status.name() {
            assert_eq!(seen.insert(name, code), None, "{name}");
            assert!(name.is_ascii() && name.to_lowercase() == name, "{name}");
            named += 1;
        }
    }
    // Less those between that are reserved: 17h; 04h and 17h.
    let generic = (0x2b - 1) + 0xa;
    let command_specific = (0x3c - 2) + 0xa + 0xa + 2;
    let (media, path) = (9, 7);
    assert_eq!(named, generic + command_specific + media + path);
}

#[test]
fn display_tells_name_code_and_flags() {
    assert_eq!(
        Status::SUCCESS.to_string(),
        "successful completion (0h/00h)"
    );
    assert_eq!(
        Status::LBA_OUT_OF_RANGE
            .with_dnr(true)
            .with_more(true)
            .with_crd(2)
            .to_string(),
        "lba out of range (0h/80h, do not retry, more in the error log, retry delay 2)"
    );
    assert_eq!(Status::new(2, 0x10).to_string(), "unknown status (2h/10h)");
    assert_eq!(
        Status::new(7, 0x10).to_string(),
        "vendor specific status (7h/10h)"
    );
    assert_eq!(
        std::format!("{:?}", Status::SUCCESS),
        "Status(successful completion (0h/00h))"
    );
}

#[test]
fn flags_are_at_their_bits_and_leave_the_code_alone() {
    let status = Status::ANA_TRANSITION;
    assert_eq!(status.0, 0x0303);
    assert_eq!(status.with_crd(3).0, 0x1b03);
    assert_eq!(status.with_more(true).0, 0x2303);
    assert_eq!(status.with_dnr(true).0, 0x4303);
    let all = status.with_crd(3).with_more(true).with_dnr(true);
    assert_eq!((all.crd(), all.more(), all.dnr()), (3, true, true));
    assert!(all.is(status) && all != status);
    assert_eq!(all.code(), status);
    assert_eq!(all.with_crd(0).with_more(false).with_dnr(false), status);
    assert_eq!(Status::new(0xff, 0), Status::new(7, 0));
}

#[test]
fn success_with_flags_is_success() {
    assert!(Status::SUCCESS.with_more(true).with_crd(1).is_success());
    assert!(Status::default().is_success());
}
