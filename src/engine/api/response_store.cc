#include "engine/api/response_store.h"

#include <utility>

namespace sluice::engine {
namespace {

using protocol::ResponseStatus;

// Beyond its texts.
constexpr size_t kOverhead = 1024;
// Of those that were dropped, so that clients can be told; eight bytes each and a node.
constexpr size_t kRemembered = 16'384;

size_t bytes_of(const StoredResponse& response) {
  const auto& state = response.state;
  return kOverhead + state.id.size() + state.model.size() + state.echo.size() + state.text.size() +
         state.failure.size() + response.conversation.size();
}

StoredResponse without_useless(StoredResponse response) {
  if (!can_be_gone_on_from(response.state.status)) response.conversation = std::string();
  return response;
}

}  // namespace

void ResponseStore::keep(StoredResponse response) {
  const std::lock_guard lock(mu_);
  put(without_useless(std::move(response)), /*held=*/0, /*ended=*/true, {});
}

Result<void> ResponseStore::begin(StoredResponse response, size_t held, std::function<void()> cancel) {
  const std::lock_guard lock(mu_);
  if (count_going_on_ + 1 > limits_.count || bytes_going_on_ + bytes_of(response) + held > limits_.bytes) {
    return Error{ErrorCode::kExhausted,
                 fmt::format("{} responses go on in the background, and with this one they would be more than {} "
                             "(--max-stored-responses) or hold more than {} MiB (--max-stored-response-mb)",
                             count_going_on_, limits_.count, limits_.bytes >> 20)};
  }
  put(std::move(response), held, /*ended=*/false, std::move(cancel));
  return {};
}

void ResponseStore::progress(std::string_view id) {
  const std::lock_guard lock(mu_);
  const auto at = entries_.find(std::string(id));
  if (at == entries_.end() || at->second.response->state.status != ResponseStatus::kQueued) return;
  auto changed = std::make_shared<StoredResponse>(*at->second.response);
  changed->state.status = ResponseStatus::kInProgress;
  at->second.response = std::move(changed);
}

void ResponseStore::finish(protocol::ResponseState state, std::string conversation) {
  const std::lock_guard lock(mu_);
  const auto at = entries_.find(state.id);
  if (at == entries_.end()) return;  // removed
  if (at->second.response->state.status == ResponseStatus::kCancelled) state.status = ResponseStatus::kCancelled;
  StoredResponse ended{std::move(state), std::move(conversation), /*background=*/true};
  erase(at);
  put(without_useless(std::move(ended)), /*held=*/0, /*ended=*/true, {});
}

Result<ResponseStore::Found> ResponseStore::find(std::string_view id) {
  const std::lock_guard lock(mu_);
  SLUICE_TRY(const auto at, look_up(id));
  return at->second.response;
}

Result<ResponseStore::Found> ResponseStore::cancel(std::string_view id) {
  std::function<void()> cancel;
  Found response;
  {
    const std::lock_guard lock(mu_);
    SLUICE_TRY(const auto at, look_up(id));
    Entry& entry = at->second;
    if (!entry.response->background) {
      return Error{ErrorCode::kInvalidArgument, "Cannot cancel a synchronous response."};
    }
    cancel = std::exchange(entry.cancel, {});
    if (cancel) {
      auto changed = std::make_shared<StoredResponse>(*entry.response);
      changed->state.status = ResponseStatus::kCancelled;
      entry.response = std::move(changed);
    }
    response = entry.response;
  }
  if (cancel) cancel();
  return response;
}

Result<void> ResponseStore::remove(std::string_view id) {
  std::function<void()> cancel;
  {
    const std::lock_guard lock(mu_);
    SLUICE_TRY(const auto at, look_up(id));
    cancel = std::exchange(at->second.cancel, {});
    erase(at);
  }
  if (cancel) cancel();
  return {};
}

std::vector<std::string> ResponseStore::going_on() const {
  const std::lock_guard lock(mu_);
  std::vector<std::string> out;
  for (const auto& [id, entry] : entries_) {
    if (!entry.ended) out.push_back(id);
  }
  return out;
}

ResponseStore::Size ResponseStore::size() const {
  const std::lock_guard lock(mu_);
  return {entries_.size(), bytes_, dropped_};
}

Result<ResponseStore::Entries::iterator> ResponseStore::look_up(std::string_view id) {
  const std::string name(id);
  const auto at = entries_.find(name);
  if (at == entries_.end()) {
    if (dropped_ids_.contains(std::hash<std::string>()(name))) {
      return Error{ErrorCode::kNotFound,
                   fmt::format("Response with id '{}' was dropped to make room: the latest {} are kept "
                               "(--max-stored-responses), in {} MiB (--max-stored-response-mb).",
                               name, limits_.count, limits_.bytes >> 20)};
    }
    return Error{ErrorCode::kNotFound,
                 fmt::format("Response with id '{}' not found. It was never stored here (store false, or an earlier "
                             "process), or removed.",
                             name)};
  }
  if (at->second.ended) unused_.splice(unused_.end(), unused_, at->second.unused);
  return at;
}

void ResponseStore::put(StoredResponse response, size_t held, bool ended, std::function<void()> cancel) {
  const std::string id = response.state.id;
  const size_t bytes = bytes_of(response) + held;
  // The others would go for nothing.
  if (count_going_on_ + 1 > limits_.count || bytes_going_on_ + bytes > limits_.bytes) {
    ++dropped_;
    return remember_dropped(id);
  }
  Entry entry{
      .response = nullptr, .bytes = bytes, .cancel = std::move(cancel), .ended = ended, .unused = unused_.end()};
  entry.response = std::make_shared<const StoredResponse>(std::move(response));
  if (ended) entry.unused = unused_.insert(unused_.end(), id);
  bytes_ += entry.bytes;
  if (!ended) {
    ++count_going_on_;
    bytes_going_on_ += entry.bytes;
  }
  const bool fresh = entries_.emplace(id, std::move(entry)).second;
  SLUICE_CHECK(fresh, "a second response with id {}", id);
  make_room();
}

void ResponseStore::erase(Entries::iterator at) {
  bytes_ -= at->second.bytes;
  if (at->second.ended) {
    unused_.erase(at->second.unused);
  } else {
    --count_going_on_;
    bytes_going_on_ -= at->second.bytes;
  }
  entries_.erase(at);
}

void ResponseStore::make_room() {
  while ((entries_.size() > limits_.count || bytes_ > limits_.bytes) && !unused_.empty()) {
    const std::string id = unused_.front();
    erase(entries_.find(id));
    ++dropped_;
    remember_dropped(id);
  }
}

void ResponseStore::remember_dropped(const std::string& id) {
  const size_t hash = std::hash<std::string>()(id);
  if (!dropped_ids_.insert(hash).second) return;
  dropped_order_.push_back(hash);
  if (dropped_order_.size() <= kRemembered) return;
  dropped_ids_.erase(dropped_order_.front());
  dropped_order_.pop_front();
}

}  // namespace sluice::engine
