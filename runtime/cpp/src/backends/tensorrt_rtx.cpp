// TensorRT-RTX: TensorRT's interface in another library. Its classes have the names of TensorRT's, and get a namespace
// of their own here, so that one program can have both; no symbol of the library holds that name.
#define nvinfer1 nvinfer1_rtx
#define ITAE_TENSORRT_RTX
#define ITAE_LOAD load_tensorrt_rtx
#include "backends/tensorrt.cpp"  // NOLINT(bugprone-suspicious-include)
