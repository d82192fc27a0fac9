#include "iommu_core/iq/register_file.h"

namespace viommu {

void RegisterFile::Define32(uint32_t offset, uint32_t reset, RegisterAccess access) {
  words_[offset / 4] = {reset, static_cast<uint32_t>(access.rw), static_cast<uint32_t>(access.rw1c),
                        static_cast<uint32_t>(access.write_only)};
}

void RegisterFile::Define64(uint32_t offset, uint64_t reset, RegisterAccess access) {
  Define32(offset, static_cast<uint32_t>(reset), access);
  Define32(offset + 4, static_cast<uint32_t>(reset >> 32),
           {access.rw >> 32, access.rw1c >> 32, access.write_only >> 32});
}

uint32_t RegisterFile::SoftwareRead32(uint32_t offset) const {
  if (!Has(offset)) return 0;
  const Word& word = words_[offset / 4];
  return word.value & ~word.write_only;
}

bool RegisterFile::SoftwareWrite32(uint32_t offset, uint32_t value) {
  if (!Has(offset)) return false;
  Word& word = words_[offset / 4];
  word.value = (word.value & ~word.rw) | (value & word.rw);
  word.value &= ~(value & word.rw1c);
  return true;
}

}  // namespace viommu
