#include "protocol/kv_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/rng.h"

namespace sluice::protocol {
namespace {

using ::testing::ElementsAre;
using Kind = KvEvent::Kind;

std::string from_hex(std::string_view hex) {
  std::string out;
  for (size_t i = 0; i < hex.size(); i += 2) {
    out += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  }
  return out;
}

// What msgspec 0.19 writes for the structs of SGLang: two stored blocks, the first one removed, all cleared; rank 3.
constexpr std::string_view kSglang =
    "93cb3ff80000000000009497ab426c6f636b53746f72656491fec0940102cd012cce0001117004c0a347505597ab426c6f636b53746f726564"
    "91cf4000000000000000fe940506070804c0a347505593ac426c6f636b52656d6f76656491fea347505591b0416c6c426c6f636b73436c6561"
    "72656403";
// Before there were media and ranks.
constexpr std::string_view kOlder =
    "92cb3ff80000000000009296ab426c6f636b53746f7265649107c092010202c092ac426c6f636b52656d6f7665649107";
// Newer vLLM: maps, hashes as bytes, two groups of a hybrid cache of which the second is salted.
constexpr std::string_view kVllm =
    "83a27473cb4004000000000000a66576656e7473938ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392c4200001"
    "02030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc4200102030405060708090a0b0c0d0e0f10111213141516171819"
    "1a1b1c1d1e1f20b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739401020304aa626c6f636b5f73697a6502a76c6f72"
    "615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b65797392c0c0a967726f75705f69647800b26b765f63"
    "616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e8ba474797065ab426c6f636b53746f726564ac626c6f636b5f686173"
    "68657391c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fb1706172656e745f626c6f636b5f68617368c4"
    "20000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fa9746f6b656e5f696473920102aa626c6f636b5f73697a65"
    "02a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b6579739191a473616c74a967726f75705f"
    "69647801b26b765f63616368655f737065635f6b696e64ae736c6964696e675f77696e646f7784a474797065ac426c6f636b52656d6f766564"
    "ac626c6f636b5f68617368657391c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fa66d656469756da347"
    "5055a967726f75705f69647801b2646174615f706172616c6c656c5f72616e6b00";

TEST(KvEventsTest, ReadsWhatSglangWrites) {
  const auto batch = decode_kv_events(from_hex(kSglang));
  ASSERT_TRUE(batch.ok()) << batch.error().message;
  EXPECT_EQ(batch->timestamp, 1.5);
  EXPECT_EQ(batch->dp_rank, 3);
  EXPECT_EQ(batch->unreadable, 0U);
  ASSERT_EQ(batch->events.size(), 4U);
  const KvEvent &first = batch->events[0], &second = batch->events[1], &removed = batch->events[2];
  EXPECT_EQ(first.kind, Kind::kStored);
  EXPECT_THAT(first.hashes, ElementsAre(static_cast<KvBlockHash>(-2)));
  EXPECT_EQ(first.parent, std::nullopt);
  EXPECT_THAT(first.token_ids, ElementsAre(1, 2, 300, 70000));
  EXPECT_EQ(first.block_size, 4);
  EXPECT_EQ(first.medium, "GPU");
  EXPECT_FALSE(first.keyed);
  EXPECT_EQ(second.parent, static_cast<KvBlockHash>(-2));
  EXPECT_THAT(second.hashes, ElementsAre(KvBlockHash{1} << 62));
  EXPECT_EQ(removed.kind, Kind::kRemoved);
  EXPECT_THAT(removed.hashes, ElementsAre(static_cast<KvBlockHash>(-2)));
  EXPECT_EQ(batch->events[3].kind, Kind::kCleared);
}

TEST(KvEventsTest, ReadsTheOlderFormWithoutMediumAndRank) {
  const auto batch = decode_kv_events(from_hex(kOlder));
  ASSERT_TRUE(batch.ok()) << batch.error().message;
  EXPECT_EQ(batch->dp_rank, std::nullopt);
  ASSERT_EQ(batch->events.size(), 2U);
  EXPECT_THAT(batch->events[0].token_ids, ElementsAre(1, 2));
  EXPECT_THAT(batch->events[1].hashes, ElementsAre(7U));
}

TEST(KvEventsTest, ReadsTheMapsOfVllmWithHashesAsBytesAndGroups) {
  const auto batch = decode_kv_events(from_hex(kVllm));
  ASSERT_TRUE(batch.ok()) << batch.error().message;
  EXPECT_EQ(batch->dp_rank, 0);
  ASSERT_EQ(batch->events.size(), 3U);
  const KvEvent& full = batch->events[0];
  ASSERT_EQ(full.hashes.size(), 2U);
  EXPECT_NE(full.hashes[0], full.hashes[1]);
  EXPECT_EQ(full.group, 0);
  EXPECT_EQ(full.group_kind, "full_attention");
  EXPECT_FALSE(full.keyed) << "the entries are null";
  const KvEvent& sliding = batch->events[1];
  EXPECT_EQ(sliding.parent, full.hashes[0]) << "the same bytes are the same block";
  EXPECT_TRUE(sliding.keyed);
  EXPECT_EQ(sliding.group_kind, "sliding_window");
  EXPECT_EQ(batch->events[2].kind, Kind::kRemoved);
  EXPECT_EQ(batch->events[2].group, 1);
}

TEST(KvEventsTest, WhatIsWrittenIsReadAgain) {
  KvEventBatch batch{.timestamp = 12.25, .events = {}, .dp_rank = 1};
  batch.events.push_back({.kind = Kind::kStored,
                          .hashes = {5, ~KvBlockHash{0}},
                          .parent = 4,
                          .token_ids = {1, 2, 3, 4},
                          .block_size = 2,
                          .medium = "GPU"});
  batch.events.push_back({.kind = Kind::kRemoved, .hashes = {5}});
  batch.events.push_back(
      {.kind = Kind::kStored, .hashes = {9}, .token_ids = {1}, .block_size = 1, .group = 2, .group_kind = "mamba"});
  batch.events.push_back({.kind = Kind::kRemoved, .hashes = {9}, .group = 2});
  batch.events.push_back({.kind = Kind::kCleared});
  const auto read = decode_kv_events(encode_kv_events(batch));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->timestamp, 12.25);
  EXPECT_EQ(read->dp_rank, 1);
  ASSERT_EQ(read->events.size(), 5U);
  EXPECT_EQ(read->events[2].group, 2);
  EXPECT_EQ(read->events[2].group_kind, "mamba");
  EXPECT_EQ(read->events[3].group, 2);
  EXPECT_EQ(read->events[0].hashes, batch.events[0].hashes);
  EXPECT_EQ(read->events[0].parent, batch.events[0].parent);
  EXPECT_EQ(read->events[0].token_ids, batch.events[0].token_ids);
  EXPECT_EQ(read->events[1].medium, "");
}

// What msgspec 0.22 writes for SGLang's structs: a stored block for each width of integers, one with 20 tokens, all of
// the hashes removed, all cleared; rank 3.
constexpr std::string_view kAllWidths =
    "93cb41d954fc40100000dc001697ab426c6f636b53746f72656491d38000000000000000c09400ccc8ce00011170ce7fffffff04c0a3475055"
    "97ab426c6f636b53746f72656491d3ffffffff7fffffffd380000000000000009401ccc8ce00011170ce7fffffff04c0a347505597ab426c6f"
    "636b53746f72656491d280000000d3ffffffff7fffffff9402ccc8ce00011170ce7fffffff04c0a347505597ab426c6f636b53746f72656491"
    "d2ffff7fffd2800000009403ccc8ce00011170ce7fffffff04c0a347505597ab426c6f636b53746f72656491d1ff7fd2ffff7fff9404ccc8ce"
    "00011170ce7fffffff04c0a347505597ab426c6f636b53746f72656491d080d1ff7f9405ccc8ce00011170ce7fffffff04c0a347505597ab42"
    "6c6f636b53746f72656491d0dfd0809406ccc8ce00011170ce7fffffff04c0a347505597ab426c6f636b53746f72656491e0d0df9407ccc8ce"
    "00011170ce7fffffff04c0a347505597ab426c6f636b53746f72656491ffe09408ccc8ce00011170ce7fffffff04c0a347505597ab426c6f63"
    "6b53746f7265649100ff9409ccc8ce00011170ce7fffffff04c0a347505597ab426c6f636b53746f726564917f00940accc8ce00011170ce7f"
    "ffffff04c0a347505597ab426c6f636b53746f72656491cc807f940bccc8ce00011170ce7fffffff04c0a347505597ab426c6f636b53746f72"
    "656491ccffcc80940cccc8ce00011170ce7fffffff04c0a347505597ab426c6f636b53746f72656491cd0100ccff940dccc8ce00011170ce7f"
    "ffffff04c0a347505597ab426c6f636b53746f72656491cdffffcd0100940eccc8ce00011170ce7fffffff04c0a347505597ab426c6f636b53"
    "746f72656491ce00010000cdffff940fccc8ce00011170ce7fffffff04c0a347505597ab426c6f636b53746f72656491ceffffffffce000100"
    "009410ccc8ce00011170ce7fffffff04c0a347505597ab426c6f636b53746f72656491cf0000000100000000ceffffffff9411ccc8ce000111"
    "70ce7fffffff04c0a347505597ab426c6f636b53746f72656491cf7fffffffffffffffcf00000001000000009412ccc8ce00011170ce7fffff"
    "ff04c0a347505597ab426c6f636b53746f7265649107c0dc0014000102030405060708090a0b0c0d0e0f1011121314c0a347505593ac426c6f"
    "636b52656d6f766564dc0013d38000000000000000d3ffffffff7fffffffd280000000d2ffff7fffd1ff7fd080d0dfe0ff007fcc80ccffcd01"
    "00cdffffce00010000ceffffffffcf0000000100000000cf7fffffffffffffffa347505591b0416c6c426c6f636b73436c656172656403";

TEST(KvEventsTest, WritesTheBytesThatSglangWrites) {
  constexpr int64_t kHashes[] = {INT64_MIN,  -(INT64_C(1) << 31) - 1,
                                 INT32_MIN,  -32769,
                                 -129,       -128,
                                 -33,        -32,
                                 -1,         0,
                                 127,        128,
                                 255,        256,
                                 65535,      65536,
                                 UINT32_MAX, INT64_C(1) << 32,
                                 INT64_MAX};
  KvEventBatch batch{.timestamp = 1'700'000'000.25, .dp_rank = 3};
  KvEvent removed{.kind = Kind::kRemoved, .medium = "GPU"};
  for (const int64_t hash : kHashes) {
    KvEvent& stored = batch.events.emplace_back(
        KvEvent{.kind = Kind::kStored, .hashes = {static_cast<KvBlockHash>(hash)}, .block_size = 4, .medium = "GPU"});
    const auto number = static_cast<int32_t>(removed.hashes.size());
    stored.token_ids = {number, 200, 70000, INT32_MAX};
    if (number > 0) stored.parent = removed.hashes.back();
    removed.hashes.push_back(stored.hashes[0]);
  }
  KvEvent& longer =
      batch.events.emplace_back(KvEvent{.kind = Kind::kStored, .hashes = {7}, .block_size = 20, .medium = "GPU"});
  for (int32_t token = 0; token < 20; ++token) longer.token_ids.push_back(token);
  batch.events.push_back(removed);
  batch.events.push_back({.kind = Kind::kCleared});
  EXPECT_EQ(encode_kv_events(batch), from_hex(kAllWidths));
  // Without a rank: the place is there, and empty.
  const std::string alone = encode_kv_events({.timestamp = 1'700'000'000.25});
  EXPECT_EQ(alone, from_hex("93cb41d954fc4010000090c0"));
}

TEST(KvEventsTest, AnEventThatCannotBeReadDoesNotTakeTheOthersAlong) {
  // [0, [nil, [], ["Later", 1], ["BlockStored", [1], nil, [1, 2, 3], 2, nil], ["BlockStored", [1], nil, [[1, 2]], 1,
  //  nil], ["BlockRemoved", "text"], ["BlockRemoved", [9]]]]
  const auto batch =
      decode_kv_events(from_hex("92c097c090"
                                "92a54c6174657201"
                                "96ab426c6f636b53746f7265649101c09301020302c0"
                                "96ab426c6f636b53746f7265649101c09192010201c0"
                                "92ac426c6f636b52656d6f766564a474657874"
                                "92ac426c6f636b52656d6f7665649109"));
  ASSERT_TRUE(batch.ok()) << batch.error().message;
  EXPECT_EQ(batch->unreadable, 6U);
  ASSERT_EQ(batch->events.size(), 1U);
  EXPECT_THAT(batch->events[0].hashes, ElementsAre(9U));
}

TEST(KvEventsTest, WhatIsNoBatchIsAnError) {
  for (const char* hex : {"", "c0", "93", "9100", "92c0c0", "a474657874", "92c0dd7fffffff", "80", "9200", "c1"}) {
    EXPECT_FALSE(decode_kv_events(from_hex(hex)).ok()) << hex;
  }
  EXPECT_FALSE(decode_kv_events(std::string(1 << 20, '\x91')).ok()) << "a million lists in each other";
  EXPECT_EQ(decode_kv_events(std::string(kMostKvPayload + 1, '\x90')).error().code, ErrorCode::kTooLarge);
}

TEST(KvEventsTest, DamagedMessagesEndInAnAnswer) {
  Rng rng(7);
  for (const auto hex : {kSglang, kVllm}) {
    const std::string good = from_hex(hex);
    for (int round = 0; round < 20000; ++round) {
      std::string bad = good.substr(0, 1 + rng.below(good.size()));
      for (uint64_t changes = rng.below(4); changes > 0; --changes) {
        bad[rng.below(bad.size())] = static_cast<char>(rng.below(256));
      }
      const auto batch = decode_kv_events(bad);
      if (!batch.ok()) continue;
      for (const KvEvent& event : batch->events) {
        if (event.kind != Kind::kStored) continue;
        ASSERT_EQ(event.token_ids.size(), event.hashes.size() * static_cast<size_t>(event.block_size));
      }
    }
  }
}

}  // namespace
}  // namespace sluice::protocol
