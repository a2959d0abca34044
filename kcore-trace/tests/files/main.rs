//! What recordings and reports promise, checked on files and without a kernel to measure.

mod command_line;
mod compare;
mod crafted;
mod full_disk;
mod own_process;
mod plan;
mod recording;
mod reduced;
mod report;
mod sample;
