#include "engine/prefix_belief.h"

#include <algorithm>

namespace sluice::engine {
namespace {

constexpr size_t kTokenBytes = sizeof(int32_t);
constexpr size_t kIndexBytes = size_t{64} << 20;

// Prompts of another key share nothing.
struct Text {
  explicit Text(const GenerateRequest& request) {
    if (!request.extra_key.empty()) {
      bytes = request.extra_key;
      bytes.push_back('\0');
    }
    head = bytes.size();
    bytes.append(reinterpret_cast<const char*>(request.input_ids.data()), request.input_ids.size() * kTokenBytes);
  }
  std::string bytes;
  size_t head = 0;  // of the key
};

size_t new_bytes(const GenerateRequest& request, int64_t cached) {
  return static_cast<size_t>(std::ssize(request.input_ids) - cached) * kTokenBytes;
}

}  // namespace

PrefixBelief::PrefixBelief(int64_t ranks)
    : index_(std::make_unique<routing::PrefixIndex>(
          routing::PrefixIndexOptions{.budget_bytes = kIndexBytes, .max_bytes_per_worker = kIndexBytes})) {
  for (int64_t i = 0; i < ranks; ++i) beliefs_.emplace_back(std::make_unique<routing::CacheBelief>())->confirm();
}

int64_t PrefixBelief::cached_on(int64_t rank, const routing::PrefixMatch& match, size_t head) const {
  const double bytes = match.rate_of(static_cast<uint32_t>(rank)) * static_cast<double>(match.total_bytes);
  const double tokens = std::max(0.0, bytes - static_cast<double>(head)) / static_cast<double>(kTokenBytes);
  return static_cast<int64_t>(tokens * beliefs_[static_cast<size_t>(rank)]->share());
}

void PrefixBelief::expect(const GenerateRequest& request, std::span<RankLoad> loads) const {
  const Text text(request);
  const routing::PrefixMatch match = index_->match(text.bytes);
  for (size_t i = 0; i < loads.size(); ++i) {
    loads[i].prompt = std::ssize(request.input_ids);
    loads[i].cached = cached_on(static_cast<int64_t>(i), match, text.head);
  }
}

PrefixBelief::Sent PrefixBelief::dispatched(int64_t rank, const GenerateRequest& request) {
  const Text text(request);
  const int64_t cached = cached_on(rank, index_->match(text.bytes), text.head);
  routing::CacheBelief& belief = *beliefs_[static_cast<size_t>(rank)];
  belief.sent(new_bytes(request, cached));
  return {.cached = cached, .claim = index_->insert(text.bytes, static_cast<uint32_t>(rank), belief.limit_bytes())};
}

void PrefixBelief::refused(int64_t rank, const GenerateRequest& request, const Sent& sent) {
  beliefs_[static_cast<size_t>(rank)]->unsent(new_bytes(request, sent.cached));
  index_->withdraw(Text(request).bytes, static_cast<uint32_t>(rank), sent.claim);
}

void PrefixBelief::answered(int64_t rank, int64_t expected, const RequestOutput& output) {
  if (output.prompt_tokens <= 0) return;
  const auto prompt = static_cast<double>(output.prompt_tokens);
  beliefs_[static_cast<size_t>(rank)]->reported(static_cast<double>(expected) / prompt,
                                                static_cast<double>(output.cached_tokens) / prompt);
}

void PrefixBelief::capacity(int64_t rank, int64_t tokens) {
  if (tokens > 0) beliefs_[static_cast<size_t>(rank)]->capacity(static_cast<size_t>(tokens) * kTokenBytes);
}

void PrefixBelief::forget(int64_t rank) {
  index_->drop_worker(static_cast<uint32_t>(rank));
  beliefs_[static_cast<size_t>(rank)]->restart();
}

}  // namespace sluice::engine
