//! Packets, exit records and plans from a peer that means harm: read or refused, never a panic, and
//! what was read is written the same way again.
#![no_main]

use conmon_rs::exit::ExitRecord;
use conmon_rs::protocol::Frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes) {
        let again = frame.encode();
        assert_eq!(Frame::decode(&again).as_ref(), Ok(&frame));
    }
    if let Ok(record) = ExitRecord::from_file(bytes) {
        let again = record.to_file();
        assert_eq!(
            ExitRecord::from_file(again.as_bytes()).as_ref(),
            Ok(&record)
        );
    }
    if let Ok(process) = crisp_oci::wire::decode_process(bytes) {
        let again = crisp_oci::wire::encode_process(&process);
        assert_eq!(
            crisp_oci::wire::decode_process(&again).as_ref(),
            Ok(&process)
        );
    }
    if let Ok(plan) = crisp_oci::wire::decode(bytes) {
        let again = crisp_oci::wire::encode(&plan);
        assert_eq!(crisp_oci::wire::decode(&again).as_ref(), Ok(&plan));
    }
});
