#include "iommu_core/mem/dirty_log.h"

#include <atomic>
#include <bit>

#include "iommu_core/base/errors.h"

namespace viommu {
namespace {

constexpr uint64_t kGroupPages = 64;

}  // namespace

absl::Status DirtyLogLayout::Check(uint64_t size_bytes) const {
  if (!IsAligned(base.value() | ram_bytes, kPageSize)) {
    return errors::Invalid("a dirty log and the memory it covers begin and end at page boundaries");
  }
  if (size_bytes < SizeFor(ram_bytes)) {
    return errors::Invalid("the dirty log is too small: one byte a page and one a 64-byte line");
  }
  if (base.value() >= ram_bytes || size_bytes > ram_bytes - base.value()) {
    return errors::Invalid("the dirty log lies outside the guest's memory");
  }
  return absl::OkStatus();
}

void DirtyLogCollector::Watch(PhysAddr page) {
  if (page.value() >= layout_.ram_bytes) return;
  const uint64_t number = page.value() >> kPageShift;
  const auto [it, added] = index_.try_emplace(number / kGroupPages, groups_.size());
  if (added) {
    groups_.push_back({number / kGroupPages, 0});
    users_.emplace_back();
  }
  if (users_[it->second][number % kGroupPages]++ == 0) {
    groups_[it->second].watched |= uint64_t{1} << (number % kGroupPages);
  }
}

void DirtyLogCollector::Unwatch(PhysAddr page) {
  if (page.value() >= layout_.ram_bytes) return;
  const uint64_t number = page.value() >> kPageShift;
  const auto it = index_.find(number / kGroupPages);
  if (it == index_.end()) return;
  const size_t place = it->second;
  uint32_t& users = users_[place][number % kGroupPages];
  if (users == 0 || --users != 0) return;
  groups_[place].watched &= ~(uint64_t{1} << (number % kGroupPages));
  if (groups_[place].watched != 0) return;
  index_.erase(it);
  if (place + 1 != groups_.size()) {
    groups_[place] = groups_.back();
    users_[place] = users_.back();
    index_[groups_[place].number] = place;
  }
  groups_.pop_back();
  users_.pop_back();
}

uint64_t DirtyLogCollector::TakeBytes(PhysAddr at, uint64_t mask) {
  const uint64_t* page = memory_.PageInPlace(PhysAddr(AlignDown(at.value(), kPageSize)));
  std::array<uint64_t, 8> words;
  uint64_t any = 0;
  for (size_t i = 0; i < words.size(); ++i) {
    words[i] = page != nullptr
                   ? __atomic_load_n(page + (at.value() & kPageMask) / 8 + i, __ATOMIC_RELAXED)
                   : memory_.Read64(at + 8 * i).value_or(0);
    any |= words[i];
  }
  if (any == 0) return 0;
  uint64_t marked = 0;
  for (uint64_t word = 0; word < words.size(); ++word) {
    if (words[word] == 0) continue;
    for (uint64_t byte = 0; byte < 8; ++byte) {
      const uint64_t bit = uint64_t{1} << (8 * word + byte);
      if ((mask & bit) == 0 || ((words[word] >> (8 * byte)) & 0xff) == 0) continue;
      memory_.Write8(at + 8 * word + byte, 0);
      marked |= bit;
    }
  }
  // What is read next must not be older than the marks that were cleared.
  if (marked != 0) std::atomic_thread_fence(std::memory_order_seq_cst);
  return marked;
}

void DirtyLogCollector::Collect(absl::FunctionRef<void(PhysAddr page, uint64_t lines)> visit,
                                uint64_t& bytes_read) {
  bytes_read += kGroupPages * groups_.size();
  for (const Group& group : groups_) {
    const PhysAddr first(group.number * kGroupPages << kPageShift);
    uint64_t pages = TakeBytes(layout_.PageByte(first), group.watched);
    for (; pages != 0; pages &= pages - 1) {
      const PhysAddr page = first + (static_cast<uint64_t>(std::countr_zero(pages)) << kPageShift);
      bytes_read += DirtyLogLayout::kLinesPerPage;
      const uint64_t lines = TakeBytes(layout_.LineByte(page), ~uint64_t{0});
      if (lines != 0) visit(page, lines);
    }
  }
}

}  // namespace viommu
