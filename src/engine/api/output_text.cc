#include "engine/api/output_text.h"

#include <algorithm>

namespace sluice::engine {

PrefixMatcher::PrefixMatcher(std::string word) : word_(std::move(word)), fallback_(word_.size(), 0) {
  for (size_t i = 1, length = 0; i < word_.size(); ++i) {
    while (length > 0 && word_[i] != word_[length]) length = fallback_[length - 1];
    if (word_[i] == word_[length]) ++length;
    fallback_[i] = length;
  }
}

void PrefixMatcher::push(std::string_view text) {
  for (const char c : text) {
    while (matched_ > 0 && word_[matched_] != c) matched_ = fallback_[matched_ - 1];
    if (word_[matched_] == c) ++matched_;
    if (matched_ == word_.size()) matched_ = fallback_.back();
  }
}

OutputText::OutputText(std::shared_ptr<const tokenizer::Tokenizer> tokenizer, Options options)
    : options_(std::move(options)), decoder_(std::move(tokenizer), options_.skip_special, /*at_head=*/false) {
  if (options_.no_stop_trim) return;  // whatever comes is shown
  for (const auto& stop : options_.stop) {
    if (!stop.empty()) matchers_.emplace_back(stop);
  }
}

void OutputText::push(std::span<const int32_t> ids, const FinishReason& finish, std::string& out) {
  const bool ends_in_stop_token = finish.kind == FinishKind::kStopToken && !ids.empty() &&
                                  ids.back() == finish.matched_token && !options_.no_stop_trim;
  if (ends_in_stop_token) ids = ids.first(ids.size() - 1);
  const size_t seen = pending_.size();
  for (const int32_t id : ids) pending_ += decoder_.push(id);
  if (finish.kind != FinishKind::kNone) pending_ += decoder_.finish();
  for (auto& matcher : matchers_) matcher.push(std::string_view(pending_).substr(seen));

  if (finish.kind == FinishKind::kNone) {
    const size_t shown = pending_.size() - possible_stop();
    out.append(pending_, 0, shown);
    pending_.erase(0, shown);
    return;
  }
  if (finish.kind == FinishKind::kStopString) cut_at_stop();
  out += pending_;
  pending_.clear();
}

size_t OutputText::possible_stop() const {
  size_t longest = 0;
  for (const auto& matcher : matchers_) longest = std::max(longest, matcher.matched());
  return std::min(longest, pending_.size());
}

// A stop string always begins in what is pending: had its beginning been given out, it would have been kept back. It is
// not there at all if the rank saw it across a special token that is not shown, or if a stop_regex matched, which is
// shown.
void OutputText::cut_at_stop() {
  size_t at = std::string::npos;
  for (const auto& matcher : matchers_) at = std::min(at, pending_.find(matcher.word()));
  if (at != std::string::npos) pending_.erase(at);
}

}  // namespace sluice::engine
