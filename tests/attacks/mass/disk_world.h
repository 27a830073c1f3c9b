// A disk log of one shard: two chains of two namespaces, small and large, in epoch 1 and again in epoch 2, and one more for each
// codec of this build, compressed. Faults change its files; the judge opens it as a reader does, reads everything in whole and in parts, and
// compares.
#pragma once

#include <array>

#include "../../../csrc/gft_disk.h"
#include "disk_fix.h"
#include "run.h"

namespace mass {

using Id = std::array<uint8_t, 16>;

struct Sealed {
  gft_disk_key key;
  std::vector<uint8_t> payload;
};
struct DiskFile {
  std::vector<uint8_t> sound, now;
  bool dirty = false, removed = false;
};
// Where a record lies in its file: header page, then the stored bytes.
struct RecordAt {
  std::string file;
  uint64_t offset, stored;
  bool block;
  uint16_t codec;
};

class DiskWorld {
 public:
  DiskWorld();
  ~DiskWorld();

  void restore();  // puts back what was changed
  End judge(Random &random);

  // For faults: the files as they are, to be changed in place.
  std::map<std::string, DiskFile> files;
  std::map<std::string, std::vector<uint8_t>> earlier, foreign;  // after the first term; of another log with the same blocks
  std::vector<RecordAt> records;                                 // of the sound log
  std::vector<std::pair<std::string, uint64_t>> commits;
  std::vector<uint8_t> &bytes(const std::string &name);
  void remove(const std::string &name);
  void add(const std::string &name, std::vector<uint8_t> bytes);
  std::string any(Random &random, const char *prefix) const;  // name of a file; "" when there is none
  const std::string &folder() const { return folder_; }
  bool write_too = false;  // work goes on in the damaged log

 private:
  void write();  // puts down what was changed
  void fill(const std::string &folder, int version);
  void fill_packed(const std::string &folder, uint32_t codec);
  void fill_all(const std::string &folder);  // all terms but the first
  void append_chain(gft_disk *log, const std::string &model, uint64_t blocks, int version, bool packs);
  static std::map<std::string, std::vector<uint8_t>> read_files(const std::string &folder);
  void find_records();
  gft_disk *open(bool read_only) const;
  void judge_reads(gft_disk *log, Random &random);
  void judge_entry(const gft_disk_entry &entry, bool listed);
  void saw(uint64_t what) { seen_ = (seen_ ^ what) * 0x100000001b3; }

  std::string folder_;
  std::map<Id, Sealed> truth_;
  std::vector<std::string> extra_;
  gft_disk *reader_ = nullptr;  // open since before the fault
  uint64_t seen_ = 0, untouched_ = 0, restored_ = 0;
};

}  // namespace mass
