#include "parallel/exchange_log.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/check.h"

namespace sluice::parallel {
namespace {

std::string_view name_of(ForwardMode mode) {
  switch (mode) {
    case ForwardMode::kExtend:
      return "prefill";
    case ForwardMode::kDecode:
      return "decode";
    case ForwardMode::kMixed:
      return "mixed";
    case ForwardMode::kIdle:
      break;
  }
  return "idle";
}

}  // namespace

ExchangeLog::ExchangeLog(const Layout& layout)
    : layout_(layout), entries_(static_cast<size_t>(kKept * layout.tp_size)) {}

void ExchangeLog::record(std::span<const StepRow> rows) {
  SLUICE_CHECK(std::ssize(rows) == layout_.tp_size, "{} rows of {} ranks", rows.size(), layout_.tp_size);
  auto to = entries_.begin() + recorded_++ % kKept * layout_.tp_size;
  for (const StepRow& row : rows) {
    *to++ = {static_cast<ForwardMode>(row.local_forward_mode), row.more_to_come != 0, row.num_tokens};
  }
  last_ = rows[static_cast<size_t>(layout_.tp_rank)].seq;
}

// What follows itself is counted.
std::string ExchangeLog::text_of(int64_t rank) const {
  std::vector<std::string> texts;
  int64_t alike = 0;
  const auto entry = [&](int64_t exchange) -> const Entry& {
    return entries_[static_cast<size_t>(exchange % kKept * layout_.tp_size + rank)];
  };
  for (int64_t i = std::max<int64_t>(0, recorded_ - kKept); i < recorded_; ++i) {
    const Entry& now = entry(i);
    ++alike;
    if (i + 1 < recorded_ && entry(i + 1) == now) continue;
    std::string text = now.tokens > 0     ? fmt::format("{} of {}", name_of(now.mode), now.tokens)
                       : now.more_to_come ? "not ready"
                                          : std::string(name_of(now.mode));
    texts.push_back(alike == 1 ? std::move(text) : fmt::format("{} x {}", alike, text));
    alike = 0;
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

std::string ExchangeLog::text() const {
  if (recorded_ == 0) return {};
  std::string text = fmt::format("exchanges {} to {}", last_ - std::min(recorded_, kKept) + 1, last_);
  const int64_t members = layout_.attention_tp_size();
  // The others of an attention group have no batch of their own.
  for (int64_t rank = 0; rank < layout_.tp_size; rank += members) {
    const std::string who =
        members == 1 ? fmt::format("rank {}", rank) : fmt::format("ranks {} to {}", rank, rank + members - 1);
    text += fmt::format("; {}: {}", who, text_of(rank));
  }
  return text;
}

}  // namespace sluice::parallel
