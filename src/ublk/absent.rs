//! What stands for `ring` in a program that was built without the feature `online-ublk`: nothing can be had.

use crate::format::ublk::{QueueCommand, Request};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// There is none.
pub enum Ring {}

/// None comes.
pub struct Done {
    pub token: u32,
    pub result: i32,
    pub what: What,
}

/// As that of `ring`.
#[derive(PartialEq, Eq)]
#[expect(dead_code, reason = "nothing comes")]
pub enum What {
    Command,
    Broken,
    Bytes,
}

/// As that of `ring`.
#[expect(dead_code, reason = "nobody takes it")]
pub struct Relay<'a> {
    pub from: (&'a Arc<File>, u64),
    pub to: (&'a Arc<File>, u64),
    pub length: u32,
}

/// There are none.
pub enum Descriptors {}

fn absent<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "this program was built without the feature online-ublk"))
}

impl Ring {
    pub fn new(_entries: u32, _relays: u16) -> Result<Self> {
        absent()
    }

    pub fn queue(&mut self, _device: &File, _command: QueueCommand, _token: u32) -> Result<()> {
        match *self {}
    }

    pub fn relay(&mut self, _relay: &Relay<'_>, _token: u16) -> Result<()> {
        match *self {}
    }

    pub fn fetch(&mut self, _from: (&Arc<File>, u64), _length: u32, _token: u16) -> Result<()> {
        match *self {}
    }

    pub fn bytes(&self, _token: u16) -> &[u8] {
        match *self {}
    }

    pub fn watch(&mut self, _fd: &OwnedFd, _token: u32) -> Result<()> {
        match *self {}
    }

    pub fn wait(&mut self, _done: &mut Vec<Done>) -> Result<()> {
        match *self {}
    }

    pub fn submit(&mut self) -> Result<()> {
        match *self {}
    }
}

impl Descriptors {
    pub fn map(_device: &File, _depth: u16) -> Result<Self> {
        absent()
    }

    pub fn get(&self, _tag: u16) -> Option<[u8; Request::SIZE]> {
        match *self {}
    }
}

pub fn ask(
    _control: &File,
    _code: u32,
    _target: (u32, u64),
    _buf: &mut [u8],
    _limit: Duration,
) -> Result<()> {
    absent()
}
