#include "iommu_core/mem/remote_memory.h"

#include <algorithm>
#include <cstring>

#include "iommu_core/base/bits.h"
#include "iommu_core/base/errors.h"

namespace viommu {

absl::StatusOr<std::unique_ptr<RemoteMemory>> RemoteMemory::Create(uint64_t size_bytes,
                                                                   PageSource& source,
                                                                   Limits limits) {
  if (size_bytes == 0 || !IsAligned(size_bytes, kPageSize)) {
    return errors::Invalid("remote memory is a whole number of pages");
  }
  // A prefetch must not push out what was pulled just before it.
  if (limits.cached_pages < 2 * kMaxFetchPages || limits.pages_per_refresh == 0) {
    return errors::Invalid("remote memory keeps at least 1024 pages and pulls at least one");
  }
  auto memory = std::unique_ptr<RemoteMemory>(new RemoteMemory(size_bytes, source, limits));
  memory->oracle_ = std::unique_ptr<RemoteMemory>(new RemoteMemory(size_bytes, source, limits));
  memory->twin_ = memory->oracle_.get();
  memory->oracle_->twin_ = memory.get();
  return memory;
}

void RemoteMemory::DropAll() const {
  std::vector<Along> tables;
  const size_t first_slots = std::min(next_slot_, 4 * kMaxAlongPages);  // in order of their pulls
  for (size_t i = 0; i < first_slots && tables.size() < kMaxAlongPages; ++i) {
    if (slots_[i].page == kNoPage || !slots_[i].table) continue;
    tables.push_back({PhysAddr(slots_[i].page << kPageShift), refreshes_});
  }
  if (!tables.empty()) {
    ++refreshes_;
    for (const Along& older : along_) {
      if (tables.size() == kMaxAlongPages || refreshes_ - older.refresh > kAlongRefreshes) break;
      const auto same = [&](const Along& along) { return along.page == older.page; };
      if (std::none_of(tables.begin(), tables.end(), same)) tables.push_back(older);
    }
    along_ = std::move(tables);
  }
  for (const auto& [page, slot] : slot_of_page_) slots_[slot].page = kNoPage;
  slot_of_page_.clear();
  last_page_ = kNoPage;
  next_slot_ = 0;
}

void RemoteMemory::Refresh() const {
  DropAll();
  if (oracle_ == nullptr) return;  // the oracle looks again, within one bound and one failure
  oracle_->DropAll();
  for (const RemoteMemory* view : {this, const_cast<const RemoteMemory*>(oracle_.get())}) {
    view->pulled_since_refresh_ = 0;
    view->status_ = absl::OkStatus();
  }
}

void RemoteMemory::Drop(PhysAddr page) const {
  const auto found = slot_of_page_.find(page.value() >> kPageShift);
  if (found == slot_of_page_.end()) return;
  slots_[found->second].page = kNoPage;
  slot_of_page_.erase(found);
  last_page_ = kNoPage;
}

void RemoteMemory::Pull(std::span<const PhysAddr> asked) const {
  if (asked.empty() || failed()) return;
  std::array<PhysAddr, kMaxFetchPages> with_along;
  std::span<const PhysAddr> pages = asked;
  if (slot_of_page_.empty() && asked.size() + along_.size() <= kMaxFetchPages &&
      asked.size() + along_.size() <= limits_.pages_per_refresh - pulled_since_refresh_) {
    auto end = std::copy(asked.begin(), asked.end(), with_along.begin());
    for (const Along& along : along_) {
      if (std::find(asked.begin(), asked.end(), along.page) == asked.end()) *end++ = along.page;
    }
    pages = std::span(with_along.data(), static_cast<size_t>(end - with_along.begin()));
  }
  if (pages.size() > limits_.pages_per_refresh - pulled_since_refresh_) {
    status_ =
        errors::LimitReached("--max_remote_pages_per_invalidation", limits_.pages_per_refresh);
    return;
  }
  std::array<size_t, kMaxFetchPages> taken;
  std::array<RemotePage*, kMaxFetchPages> out;
  last_page_ = kNoPage;
  for (size_t i = 0; i < pages.size(); ++i) {
    if (slots_.size() < limits_.cached_pages) slots_.resize(slots_.size() + 1);
    taken[i] = next_slot_;
    Slot& slot = slots_[next_slot_];
    next_slot_ = (next_slot_ + 1) % limits_.cached_pages;
    if (slot.page != kNoPage) slot_of_page_.erase(slot.page);
    slot.page = kNoPage;
    slot.table = false;
    if (slot.copy == nullptr) slot.copy = std::make_unique<RemotePage>();
    out[i] = slot.copy.get();
  }
  pulled_since_refresh_ += pages.size();
  ++counts_.round_trips;
  status_ = source_.Fetch(pages, std::span(out.data(), pages.size()));
  if (!status_.ok()) return;
  counts_.pages += pages.size();
  counts_.bytes += pages.size() * kPageSize;
  for (size_t i = 0; i < pages.size(); ++i) {
    slots_[taken[i]].page = pages[i].value() >> kPageShift;
    slot_of_page_[slots_[taken[i]].page] = taken[i];
  }
}

void RemoteMemory::Prefetch(std::span<const PhysAddr> pages) const {
  std::array<PhysAddr, kMaxFetchPages> missing;
  size_t count = 0;
  for (const PhysAddr page : pages) {
    if (count == kMaxFetchPages) break;
    if (!Inside(page, kPageSize) || slot_of_page_.contains(page.value() >> kPageShift)) continue;
    missing[count++] = page;
  }
  // Two entries of a guest's table may name one page.
  std::sort(missing.begin(), missing.begin() + count);
  count =
      static_cast<size_t>(std::unique(missing.begin(), missing.begin() + count) - missing.begin());
  Pull(std::span(missing.data(), count));
}

const RemotePage* RemoteMemory::Find(PhysAddr address, bool table) const {
  const uint64_t page = address.value() >> kPageShift;
  if (page == last_page_) return last_copy_;
  auto found = slot_of_page_.find(page);
  if (found == slot_of_page_.end()) {
    const PhysAddr aligned(AlignDown(address.value(), kPageSize));
    Pull(std::span(&aligned, 1));
    found = slot_of_page_.find(page);
    if (found == slot_of_page_.end()) return nullptr;
  }
  last_page_ = page;
  slots_[found->second].table |= table;
  last_copy_ = slots_[found->second].copy.get();
  return last_copy_;
}

std::optional<uint64_t> RemoteMemory::Read64(PhysAddr address) const {
  if (!Inside(address, sizeof(uint64_t))) return std::nullopt;
  const RemotePage* copy = Find(address);
  if (copy == nullptr) return std::nullopt;
  return copy->entries[(address.value() & kPageMask) / sizeof(uint64_t)];
}

std::optional<uint32_t> RemoteMemory::Read32(PhysAddr address) const {
  const auto both = Read64(PhysAddr(AlignDown(address.value(), sizeof(uint64_t))));
  if (!both) return std::nullopt;
  return static_cast<uint32_t>(*both >> (8 * (address.value() & sizeof(uint32_t))));
}

bool RemoteMemory::ReadBytes(PhysAddr address, std::span<std::byte> out) const {
  if (!Inside(address, out.size())) return false;
  while (!out.empty()) {
    const uint64_t offset = address.value() & kPageMask;
    const size_t chunk = std::min<size_t>(out.size(), kPageSize - offset);
    const RemotePage* copy = Find(address, /*table=*/false);
    if (copy == nullptr) return false;
    std::memcpy(out.data(), reinterpret_cast<const std::byte*>(copy->entries.data()) + offset,
                chunk);
    out = out.subspan(chunk);
    address += chunk;
  }
  return true;
}

bool RemoteMemory::WriteBytes(PhysAddr address, std::span<const std::byte> in) {
  if (!Inside(address, in.size())) return false;
  while (!in.empty()) {
    if (failed()) return false;
    const size_t chunk = std::min<size_t>(in.size(), kPageSize - (address.value() & kPageMask));
    const PhysAddr page(AlignDown(address.value(), kPageSize));
    Drop(page);
    twin_->Drop(page);
    ++counts_.round_trips;
    status_ = source_.Store(address, in.first(chunk));
    if (!status_.ok()) return false;
    in = in.subspan(chunk);
    address += chunk;
  }
  return true;
}

bool RemoteMemory::Write64(PhysAddr address, uint64_t value) {
  return WriteBytes(address, std::as_bytes(std::span(&value, 1)));
}

bool RemoteMemory::Write32(PhysAddr address, uint32_t value) {
  return WriteBytes(address, std::as_bytes(std::span(&value, 1)));
}

const uint64_t* RemoteMemory::PageInPlace(PhysAddr page) const {
  if (!Inside(page, kPageSize)) return nullptr;
  const RemotePage* copy = Find(page);
  return copy == nullptr ? nullptr : copy->entries.data();
}

}  // namespace viommu
