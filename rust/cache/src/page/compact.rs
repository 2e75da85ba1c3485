//! As much of Thrift's compact protocol as the headers of pages need.
//!
//! Format: Apache Thrift, `thrift-compact-protocol.md`. A field is a byte with the step of its number and
//! its type, then its value; integers are zigzag varints.

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    I32 = 5,
    Struct = 12,
}

/// Structs in structs that are skipped at most: damaged bytes may claim any depth.
const DEEPEST: usize = 16;

/// What comes next in a struct.
enum Next {
    /// A field, by its number and type.
    Field(i16, u8),
    End,
}

/// Reads from the start of some bytes; `None` from every call for bytes that are no such structs.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes that were read.
    pub(crate) const fn position(&self) -> usize {
        self.at
    }

    /// Calls `visit` with the number of each field that is an `i32` or a struct, which then has to read
    /// its value; skips the others.
    pub(crate) fn fields(
        &mut self,
        mut visit: impl FnMut(&mut Self, i16, Type) -> Option<()>,
    ) -> Option<()> {
        let mut number = 0;
        while let Next::Field(next, code) = self.field(number)? {
            number = next;
            match code {
                5 => visit(self, number, Type::I32)?,
                12 => visit(self, number, Type::Struct)?,
                other => self.skip(other, DEEPEST)?,
            }
        }
        Some(())
    }

    pub(crate) fn i32(&mut self) -> Option<i32> {
        i32::try_from(self.integer()?).ok()
    }

    /// Skips a value of one of the types that [`Reader::fields`] shows.
    pub(crate) fn skip_value(&mut self, kind: Type) -> Option<()> {
        self.skip(kind as u8, DEEPEST)
    }

    /// The next field after the one of a number.
    fn field(&mut self, before: i16) -> Option<Next> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(Next::End);
        }
        let number = match byte >> 4 {
            0 => i16::try_from(self.integer()?).ok()?,
            step => before.checked_add(i16::from(step))?,
        };
        Some(Next::Field(number, byte & 0x0f))
    }

    fn skip(&mut self, code: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match code {
            1 | 2 => {} // true and false: the type is the value
            3 => self.advance(1)?,
            4..=6 => self.integer().map(drop)?,
            7 => self.advance(8)?,
            8 => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.advance(length)?;
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                self.skip_all(count, &[head & 0x0f], depth)?;
            }
            11 => {
                let count = self.varint()?;
                if count > 0 {
                    let types = self.byte()?;
                    self.skip_all(count, &[types >> 4, types & 0x0f], depth)?;
                }
            }
            12 => {
                let mut number = 0;
                while let Next::Field(next, code) = self.field(number)? {
                    number = next;
                    self.skip(code, depth)?;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn skip_all(&mut self, count: u64, types: &[u8], depth: usize) -> Option<()> {
        for _ in 0..count {
            for code in types {
                // In a list, unlike in a struct, true and false are a byte each.
                match code {
                    1 | 2 => self.advance(1)?,
                    code => self.skip(*code, depth)?,
                }
            }
        }
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn advance(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count).filter(|at| *at <= self.bytes.len())?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn integer(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }
}

/// Writes one struct: its fields in ascending order, then [`Writer::end`].
#[cfg(feature = "writer")]
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    number: u8,
}

#[cfg(feature = "writer")]
impl<'a> Writer<'a> {
    pub(crate) const fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, number: 0 }
    }

    pub(crate) fn i32(&mut self, number: u8, value: i32) {
        self.field(number, Type::I32);
        let value = i64::from(value);
        let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
        while rest >= 0x80 {
            self.out.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        self.out.push((rest & 0x7f) as u8);
    }

    /// Begins a struct in this one, which has to be ended before this one continues.
    pub(crate) fn begin(&mut self, number: u8) -> Writer<'_> {
        self.field(number, Type::Struct);
        Writer::new(self.out)
    }

    pub(crate) fn end(self) {
        self.out.push(0);
    }

    /// Numbers rise by less than 16 from one field of a page's header to the next.
    fn field(&mut self, number: u8, kind: Type) {
        self.out.push((number - self.number) << 4 | kind as u8);
        self.number = number;
    }
}
