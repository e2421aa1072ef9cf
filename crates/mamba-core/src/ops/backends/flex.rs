impl crate::ops::extension::MambaOps for burn::backend::Flex {}
