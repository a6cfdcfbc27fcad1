//! References, ids, manifests and image configurations.
#![no_main]

use crisp::image::{IdPrefix, ImageId, Platform, Reference, manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let platform = Platform::host();
    let _ = manifest::read_document(bytes, None, &platform);
    let _ = manifest::read_config(bytes, 1, &platform);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = (ImageId::parse(text), IdPrefix::parse(text));
    if let Ok(reference) = Reference::parse(text) {
        // Its full name means the same.
        let name = reference.repo_tag().unwrap_or_else(|| reference.name());
        let again = Reference::parse(&name).expect("a full name is a reference");
        assert_eq!(again.registry(), reference.registry());
        assert_eq!(again.repository(), reference.repository());
        assert!(!reference.repository().contains(".."), "{text:?}");
    }
});
