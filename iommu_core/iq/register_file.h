// The storage of a unit's registers: what software may change, clear and see of each bit. Side
// effects belong to VtdUnit.
#ifndef VIOMMU_IOMMU_CORE_IQ_REGISTER_FILE_H_
#define VIOMMU_IOMMU_CORE_IQ_REGISTER_FILE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace viommu {

// What software can do to the bits of one register (VT-d 11.3); bits in none of the masks are RO.
struct RegisterAccess {
  uint64_t rw = 0;          // RW: keeps what is written
  uint64_t rw1c = 0;        // RW1C: a written 1 clears the bit
  uint64_t write_only = 0;  // WO: stored, reads as 0
};

// 32-bit words by byte offset. A 64-bit register is two words, low first, each reachable alone
// (11.1: software may access either half). Offsets that hold no register read 0 and ignore writes.
class RegisterFile {
 public:
  explicit RegisterFile(uint32_t size_bytes) : words_(size_bytes / sizeof(uint32_t)) {}

  // Offsets are 4-byte aligned and inside the file.
  void Define32(uint32_t offset, uint32_t reset, RegisterAccess access);
  void Define64(uint32_t offset, uint64_t reset, RegisterAccess access);

  // The unit's own view: every bit, no masks.
  uint32_t Get32(uint32_t offset) const { return words_[offset / 4].value; }
  uint64_t Get64(uint32_t offset) const {
    return Get32(offset) | static_cast<uint64_t>(Get32(offset + 4)) << 32;
  }
  void Set32(uint32_t offset, uint32_t value) { words_[offset / 4].value = value; }
  void Set64(uint32_t offset, uint64_t value) {
    Set32(offset, static_cast<uint32_t>(value));
    Set32(offset + 4, static_cast<uint32_t>(value >> 32));
  }

  // Software's view of one word; any offset. Unaligned or outside: reads 0, ignores the write.
  uint32_t SoftwareRead32(uint32_t offset) const;
  // True if a word was there to be written.
  bool SoftwareWrite32(uint32_t offset, uint32_t value);

 private:
  struct Word {
    uint32_t value = 0;
    uint32_t rw = 0;
    uint32_t rw1c = 0;
    uint32_t write_only = 0;
  };
  bool Has(uint32_t offset) const { return offset % 4 == 0 && offset / 4 < words_.size(); }

  std::vector<Word> words_;
};

}  // namespace viommu

#endif  // VIOMMU_IOMMU_CORE_IQ_REGISTER_FILE_H_
