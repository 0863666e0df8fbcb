// What engines publish of their caches, in MessagePack: what is read holds together, and comes back when it is written.
#include "protocol/kv_events.h"

#include "fuzz.h"

using namespace sluice;
using protocol::KvEvent;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto batch = protocol::decode_kv_events({reinterpret_cast<const char*>(data), size});
  if (!batch.ok()) {
    FUZZ_CHECK(!batch.error().message.empty(), "an error says what is wrong");
    return 0;
  }
  for (const KvEvent& event : batch->events) {
    if (event.kind != KvEvent::Kind::kStored) continue;
    FUZZ_CHECK(event.block_size > 0 && !event.hashes.empty(), "blocks have tokens");
    FUZZ_CHECK(event.token_ids.size() == event.hashes.size() * static_cast<size_t>(event.block_size),
               "each block has its tokens");
    for (const int32_t id : event.token_ids) FUZZ_CHECK(id >= 0, "a token is no negative number");
  }
  const std::string once = protocol::encode_kv_events(*batch);
  const auto again = protocol::decode_kv_events(once);
  FUZZ_CHECK(again.ok() && again->unreadable == 0, "what was read can be written");
  FUZZ_CHECK(again->events.size() == batch->events.size(), "no event is lost");
  FUZZ_CHECK(protocol::encode_kv_events(*again) == once, "what is written is read as it was");
  return 0;
}
