"""OCR: does the image show the text that the prompt puts in quotation marks, and no other?"""
