#include "iommu_core/mem/sparse_memory.h"

#include <algorithm>
#include <cstring>

#include "iommu_core/base/errors.h"

namespace viommu {

bool SparseMemory::IsRam(PhysAddr address, uint64_t size_bytes) const {
  return std::any_of(ram_.begin(), ram_.end(), [&](const Ram& r) {
    return r.first <= address && address < r.end && size_bytes <= r.end - address;
  });
}

const SparseMemory::Page* SparseMemory::Find(PhysAddr address) const {
  const auto it = pages_.find(AlignDown(address.value(), kPageSize));
  return it == pages_.end() ? nullptr : it->second.get();
}

SparseMemory::Page& SparseMemory::Touch(PhysAddr address) {
  auto& page = pages_[AlignDown(address.value(), kPageSize)];
  if (page == nullptr) page = std::make_unique<Page>();
  return *page;
}

std::optional<uint64_t> SparseMemory::Read64(PhysAddr address) const {
  if (!IsRam(address, sizeof(uint64_t))) return std::nullopt;
  const Page* page = Find(address);
  return page == nullptr ? 0 : (*page)[(address.value() & kPageMask) / sizeof(uint64_t)];
}

bool SparseMemory::Write64(PhysAddr address, uint64_t value) {
  if (!IsRam(address, sizeof(uint64_t))) return false;
  Touch(address)[(address.value() & kPageMask) / sizeof(uint64_t)] = value;
  return true;
}

std::optional<uint32_t> SparseMemory::Read32(PhysAddr address) const {
  uint32_t value;
  if (!ReadBytes(address, std::as_writable_bytes(std::span(&value, 1)))) return std::nullopt;
  return value;
}

bool SparseMemory::Write32(PhysAddr address, uint32_t value) {
  return WriteBytes(address, std::as_bytes(std::span(&value, 1)));
}

bool SparseMemory::ReadBytes(PhysAddr address, std::span<std::byte> out) const {
  if (!IsRam(address, out.size())) return false;
  while (!out.empty()) {
    const uint64_t offset = address.value() & kPageMask;
    const size_t chunk = std::min<size_t>(out.size(), kPageSize - offset);
    if (const Page* page = Find(address)) {
      std::memcpy(out.data(), reinterpret_cast<const std::byte*>(page->data()) + offset, chunk);
    } else {
      std::memset(out.data(), 0, chunk);
    }
    out = out.subspan(chunk);
    address += chunk;
  }
  return true;
}

bool SparseMemory::WriteBytes(PhysAddr address, std::span<const std::byte> in) {
  if (!IsRam(address, in.size())) return false;
  while (!in.empty()) {
    const uint64_t offset = address.value() & kPageMask;
    const size_t chunk = std::min<size_t>(in.size(), kPageSize - offset);
    std::memcpy(reinterpret_cast<std::byte*>(Touch(address).data()) + offset, in.data(), chunk);
    in = in.subspan(chunk);
    address += chunk;
  }
  return true;
}

const uint64_t* SparseMemory::PageInPlace(PhysAddr page) const {
  static constexpr Page kZero{};
  if (!IsRam(page, kPageSize)) return nullptr;
  const Page* found = Find(page);
  return found == nullptr ? kZero.data() : found->data();
}

absl::StatusOr<PhysAddr> SimpleFrameAllocator::Allocate() {
  PhysAddr frame;
  if (!free_.empty()) {
    frame = free_.back();
    free_.pop_back();
  } else if (next_ < end_) {
    frame = next_;
    next_ += kPageSize;
  } else {
    return errors::OutOfFrames();
  }
  static constexpr std::array<std::byte, kPageSize> kZero{};
  if (!memory_.WriteBytes(frame, kZero)) return errors::NotRam(frame);
  ++allocated_;
  return frame;
}

void SimpleFrameAllocator::Free(PhysAddr frame) {
  free_.push_back(frame);
  --allocated_;
}

}  // namespace viommu
