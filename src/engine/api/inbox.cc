#include "engine/api/inbox.h"

#include <iterator>

namespace sluice::engine {
namespace {

template <class T>
void append(std::vector<T>& to, std::vector<T>&& from) {
  if (to.empty()) {
    to = std::move(from);
  } else {
    to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
  }
}

// `later` follows `news` of the same sample.
void join(RequestOutput& news, RequestOutput&& later) {
  append(news.new_ids, std::move(later.new_ids));
  append(news.input_logprobs, std::move(later.input_logprobs));
  append(news.output_logprobs, std::move(later.output_logprobs));
  append(news.embedding, std::move(later.embedding));
  append(news.hidden_states, std::move(later.hidden_states));
  append(news.routed_experts, std::move(later.routed_experts));
  news.finish = std::move(later.finish);
  news.prompt_tokens = later.prompt_tokens;
  news.completion_tokens = later.completion_tokens;
  news.cached_tokens = later.cached_tokens;
  news.retractions = later.retractions;
  // A word of the front, for a rank that has ended, has none.
  if (later.times.begun_unix_nanos != 0) news.times = later.times;
}

}  // namespace

Inbox::Inbox(net::EventLoop& loop, std::vector<SampleMeter> meters) : event_(std::make_shared<LoopEvent>(loop)) {
  slots_.resize(meters.size());
  for (size_t i = 0; i < meters.size(); ++i) slots_[i].meter = std::move(meters[i]);
}

void Inbox::put(size_t sample, RequestOutput output) {
  {
    const std::lock_guard lock(mu_);
    Slot& slot = slots_[sample];
    slot.meter.saw(output);
    if (closed_) return;
    if (slot.has_news) {
      join(slot.news, std::move(output));
    } else {
      slot.news = std::move(output);
      slot.has_news = true;
      order_.push_back(sample);
    }
  }
  event_->notify();
}

std::vector<std::pair<size_t, RequestOutput>> Inbox::take() {
  const std::lock_guard lock(mu_);
  std::vector<std::pair<size_t, RequestOutput>> out;
  out.reserve(order_.size());
  for (const size_t sample : order_) {
    out.emplace_back(sample, std::exchange(slots_[sample].news, {}));
    slots_[sample].has_news = false;
  }
  order_.clear();
  return out;
}

void Inbox::close() {
  event_->close();
  const std::lock_guard lock(mu_);
  closed_ = true;
}

}  // namespace sluice::engine
