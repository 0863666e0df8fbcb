#include "tokenizer/sentence_pieces.h"

#include <sentencepiece_processor.h>

namespace sluice::tokenizer {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581
// normalizer_spec { add_dummy_prefix: false }: a message that is appended to another is merged into it.
constexpr std::string_view kNoPrefix("\x1a\x02\x18\x00", 4);

Result<std::unique_ptr<sentencepiece::SentencePieceProcessor>> processor_of(std::string_view model) {
  auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  if (const auto status = processor->LoadFromSerializedProto(model); !status.ok()) {
    return Error{ErrorCode::kProtocol, fmt::format("tokenizer.model: {}", status.error_message())};
  }
  return processor;
}

}  // namespace

SentencePieces::SentencePieces() = default;
SentencePieces::~SentencePieces() = default;

Result<std::unique_ptr<const SentencePieces>> SentencePieces::load(std::string_view model, bool always_prefix) {
  std::unique_ptr<SentencePieces> out(new SentencePieces());
  SLUICE_TRY(out->processor_, processor_of(model));
  std::vector<int> ids;
  if (!out->processor_->Encode("a", &ids).ok()) {
    return Error{ErrorCode::kProtocol, "tokenizer.model: it cannot encode"};
  }
  out->has_prefix_ = !ids.empty() && out->processor_->IdToPiece(ids[0]).starts_with(kSpace);
  if (!always_prefix && out->has_prefix_) {
    SLUICE_TRY(out->inner_, processor_of(std::string(model).append(kNoPrefix)));
  }
  return std::unique_ptr<const SentencePieces>(std::move(out));
}

void SentencePieces::encode(std::string_view text, bool at_start, std::vector<int32_t>& ids) const {
  const auto& processor = at_start || inner_ == nullptr ? *processor_ : *inner_;
  std::vector<int> found;
  // Fails only where the model was not loaded.
  const auto status = processor.Encode(text, &found);
  SLUICE_CHECK(status.ok(), "SentencePiece: {}", status.error_message());
  ids.insert(ids.end(), found.begin(), found.end());
}

size_t SentencePieces::size() const { return static_cast<size_t>(processor_->GetPieceSize()); }
const std::string& SentencePieces::piece(int32_t id) const { return processor_->IdToPiece(id); }

SentencePieces::Kind SentencePieces::kind(int32_t id) const {
  if (processor_->IsByte(id)) return Kind::kByte;
  if (processor_->IsControl(id)) return Kind::kControl;
  return processor_->IsUnknown(id) ? Kind::kUnknown : Kind::kText;
}

}  // namespace sluice::tokenizer
